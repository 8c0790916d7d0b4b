"""The review desk in a browser, and the JSON interface beside it. The door is `app.create_app`."""
