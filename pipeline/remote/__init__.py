"""Processes at the other end of a pipe or of ssh; the probe and the deployment share them."""
