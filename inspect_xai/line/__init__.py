"""The running line: claim, judge, explain, record, put away."""
