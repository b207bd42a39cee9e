"""What several tests share: networks, devices, servers, toys."""
