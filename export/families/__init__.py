"""Thin torch modules around transformers' vision encoders: one file per model_type, traced by `vision_encoder.py`.

Each file has `vision_encoder(folder, checkpoint)`, a module from the vision graph's inputs to its outputs whose
control flow does not depend on the pictures. `model_inputs` feeds transformers' own model; `image_features` are that
model's, a mapping by our names, or a tensor where there are no others.
"""
