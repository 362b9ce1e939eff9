"""Files that stand in every release folder as they are here; none imports this project."""
