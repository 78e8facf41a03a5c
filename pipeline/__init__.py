"""HICom-248K builder: untrimmed video in, instruction dataset out. Importing the package itself costs nothing."""
