"""`slidesparse compare`: result files side by side.

Contents:
    align      refusals of comparisons that would mean nothing: mixed units or metrics, nothing
               in common
    cost       what tokens cost: price, energy and rate of a row, and the whole of a job
    cost_view  the costs of a comparison as tables of text
    csv        the CSV of `slidesparse compare`: a line per workload and column
    differs    what differs between the files of a comparison, as a table: it is said first
    files      what differs between result files: the machines, the software, the settings, the
               source
    lines      comparison of result files: rows aligned by workload, the best of each file,
               ratios with spread
    markdown   sections of a comparison as Markdown, for a README
    profile    what each GPU of a comparison would adapt: the profiles beside each other, for
               the adapted phase
    quality    what a model says on two GPUs: it should be the same, within the noise that the
               files state
    ratio      ratios of two figures with their spread, and when a difference is none
    record     result files of `slidesparse compare`: what was compared, what differs, ratios
               and costs
    select     which rows of which files are compared, and in which columns
    text       how comparisons are worded: names of columns, numbers, what workloads have in
               common
    view       a comparison as tables of text, which the terminal and Markdown print alike
"""
