"""Curation: from a raw source to datasets worth training on, as the paper's data system does it (section 5.1).

A recipe measures every sample once (signals), finds near-duplicates over all of them, and then cuts by named sets of
thresholds, such as pretrain, anneal and sft; what is kept may be transformed (captioned anew, turned into pairs of control
images) on its way into shards. Changing a threshold measures nothing again.

Knows the formats of data/ and, for questions to a language model, chat.py. Nothing here knows the model that is trained.
"""
