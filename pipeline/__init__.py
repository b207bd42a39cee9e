"""Compress a trained vision network until it meets a measured budget on a device, and prove it."""

from pipeline.system.thread_settings import settle_threads

settle_threads()  # here, because nothing of this package can import torch before
