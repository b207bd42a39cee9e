"""Processes at the other end of a pipe or of ssh. The probe and the deployment share this package."""
