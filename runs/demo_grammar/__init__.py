"""The grammar of the demo reviews, which `make_demo_reviews.py` draws from: word lists, and frames to put them in."""
