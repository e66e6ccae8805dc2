"""Kernel programs, the record they write (event.h), and the Python that loads and attaches them."""
