"""The ways in: thin layers over the library that hold no model code."""
