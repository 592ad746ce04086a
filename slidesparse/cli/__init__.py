"""The `slidesparse` command: one module per subcommand, imported only when it runs.

Contents:
    main      the command group, lazy loading, exit codes
    options   option types that several commands share
    console   the rich console
    search    slidesparse search, with search_progress and search_table
    models    slidesparse models
    report    slidesparse report
    doctor    slidesparse doctor
    cache     slidesparse cache
"""
