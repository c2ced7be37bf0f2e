"""trainers/adapters"""
