"""Thin torch modules around transformers' vision encoders: one file per model_type, traced by `vision.py`.

Each file has `vision_encoder(folder, checkpoint)`, a module from normalised pictures (P, 3, S, S) to image
features (P, N, E) whose control flow does not depend on the pictures.
"""
