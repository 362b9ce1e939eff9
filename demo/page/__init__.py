"""The page of `demo/app.py`: what a visitor orders, the line of visitors, and the server.

Read `order.py` first: it needs no server and no browser.
"""
