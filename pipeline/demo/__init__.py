"""Small videos drawn by a program, whose cuts, colours and motion are known."""
