"""Recover: methods that recover a pruned network from few pictures, each in one file."""
