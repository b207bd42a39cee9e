"""Images with labels, from a folder, torchvision, or the user's own factory, in three splits."""
