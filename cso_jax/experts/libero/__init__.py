"""Scripted experts for LIBERO: plan a goal, find a grasp, go there, put it down."""
