"""Pictures outside the network: bytes of pixels, files, and the words a file carries about how it was made."""
