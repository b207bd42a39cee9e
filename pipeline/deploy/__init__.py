"""Brings an artifact folder onto devices: signs it, copies it, checks it there, switches to it, and rolls back."""
