"""What compiling gives: a program to save, load and run, and its variants for several sizes."""
