"""Labelled images from a folder, torchvision or the user's own factory, in three splits."""
