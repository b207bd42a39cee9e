"""What several tests share: networks, devices, servers and toy problems."""
