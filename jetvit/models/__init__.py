"""Load what a user names: models, their weights, images and labelled datasets."""
