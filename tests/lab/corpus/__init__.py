"""Awkward programs, each named for what makes it hard to move. `test_corpus.py` runs them on the hosts of a lab.

`# answer:` says what `phaul check` has to say of it: `moves`, or `refused` and the codes.
`# both:`, `# here:` and `# there:` are commands for both hosts, the source or the destination beforehand; what
`# there:` starts is left running. `# life:` tells of what is special about how it lives, `# unseen:`
why nobody can see beforehand that it will not live.
"""
