"""What train.py and startup.py are made of: three models of the shipped configs, and their data."""
