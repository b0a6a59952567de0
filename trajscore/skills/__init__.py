"""Skill profiles (STAT, arXiv 2510.10023): which skills a student lacks. It knows questions, skills and answers of an annotator
LLM; no score folder and no student model.
"""
