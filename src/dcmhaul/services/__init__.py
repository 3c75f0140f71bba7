"""What messages mean (PS3.4): verification, storage, query, retrieve."""
