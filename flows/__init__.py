"""The Prefect side: everything.py is the one to read first. Importing the package alone imports no Prefect (see environment.py)."""
