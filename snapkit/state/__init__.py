"""What a machine is: pure data. No system call, no thread, no clock; imports on any operating system."""
