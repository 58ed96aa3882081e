"""The pure core: it decides, and touches neither servers nor clock."""
