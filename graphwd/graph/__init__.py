"""What a step is: read-only views of graphs and function bodies, and tables of ops."""
