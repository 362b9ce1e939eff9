"""The page of `demo/app.py`: `request.py` reads what a visitor asks for, `server.py` answers."""
