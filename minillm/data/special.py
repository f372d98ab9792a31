"""The ids that every vocabulary of a task model begins with."""

PAD, BEGIN, END, MASK, UNKNOWN = range(5)        # no text; where an answer begins and ends; a hidden token; an unknown word
SPECIAL = "\0\1\2\3"                             # the first four as characters: an alphabet in order, and bytes, begin with them
NO_TARGET = -1                                   # of a token that a loss leaves out
