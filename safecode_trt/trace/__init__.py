"""Records of replies: how they are written and read, and how a steered step is explained."""
