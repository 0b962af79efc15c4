"""The ablation grid."""
