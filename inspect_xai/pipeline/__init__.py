"""Where maths, model and storage meet: from a camera's file to a recorded inspection."""
