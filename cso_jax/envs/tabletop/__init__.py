"""Tabletop: the five real-robot tasks of the paper's Appendix C as simulations of one ViperX-300 arm."""
