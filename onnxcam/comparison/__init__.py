"""Two recordings of the same photos: do the models say the same, and for the same reason?"""
