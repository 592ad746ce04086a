"""`slidesparse report`: pages and figures of any result files.

Contents:
    assemble        reports: what a set of result files says, from the speedups down to where
                    each figure is from
    counters        the report's section on utilisation over concurrency: throughput, and how
                    busy the GPU was
    curves          speedup curves of the records that have speedups: sweeps, benchmarks of
                    linears, searches
    draw            charts as SVG for a page, in whose colours they are drawn, and as PNG files
    format          how a report writes numbers and names, and which colour and mark each series
                    has
    markdown        a report as Markdown, for a README: its tables, and links to its figures
    page            a report as one HTML page that needs nothing but itself: no other file, no
                    network
    pareto          the report's section on accuracy against speed: what each pattern costs and
                    what it gains
    roofline        the report's roofline: GEMMs and linears by arithmetic intensity, under the
                    GPU's ceilings
    rows            the report's section for result files that have no figure of their own: all
                    of their rows
    shares          the report's section on where a step's time goes: GEMMs, fused kernels,
                    attention, the rest
    sources         the end of a report: every file with its machine, versions, settings, and
                    what was measured
    speedup         the report's section on speedup over M: a chart and a table for each thing
                    that was timed
    speedup_tables  tables of the report's section on speedup over M: in short, of whole models,
                    of every linear
    svg             what matplotlib drew as an element of a page: in its colours and font,
                    named, with tool tips
    view            what a report shows, before it is a page, Markdown or a picture: sections,
                    charts and tables
"""
