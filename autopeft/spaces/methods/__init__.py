"""spaces/methods"""
