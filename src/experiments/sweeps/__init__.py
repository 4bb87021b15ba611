"""What runs a sweep: lists of jobs and searches, the processes they run in, and what is shown of them."""
