"""One round of decoding: drafts, their verification in one pass, acceptance row by row.

A row has tokens 0..K-1, of which the first F are in the cache. A round runs the tokens F..F+n, the
known ones and then n drafts. Each row keeps its own longest prefix of right drafts and the token
that follows it. Keys and values of refused drafts stay in the cache: a later round writes over them
before any query reads them. A row whose prompt is not yet read to its end reads prompt tokens in
place of drafts.
"""
