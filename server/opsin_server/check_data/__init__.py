"""`opsin check-data`: would a training file be trained on, and what is learned from it?"""
