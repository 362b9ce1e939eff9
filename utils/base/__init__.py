"""Tools that every room stands on; read errors.py first."""
