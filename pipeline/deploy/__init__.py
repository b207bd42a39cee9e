"""From an artifact folder to devices: signed, copied, checked there, switched to, and taken back."""
