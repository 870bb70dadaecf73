"""What differs between architectures: vCPU and chip state, address map, boot protocol, firmware tables."""
