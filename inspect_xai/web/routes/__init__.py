"""The routes of the review desk."""
