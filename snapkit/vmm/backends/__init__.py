"""Host ends of devices: files, terminals, sockets. Devices never import them; they are given what they need."""
